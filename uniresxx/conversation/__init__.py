"""What a text means in a conversation: the phrases it asks for, the turns it points back to; answers in words."""
