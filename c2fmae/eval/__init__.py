"""What is done with a model or its data once it is there; so far only the pictures in `views`."""
