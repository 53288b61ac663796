"""UniRES++: configuration, mask heads, losses, processing, and the class that wires them."""
