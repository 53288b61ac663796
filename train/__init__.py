"""The training program: `python -m train RECIPE --out DIR`. The loop knows no model, models know no loop."""
