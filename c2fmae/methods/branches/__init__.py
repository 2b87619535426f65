"""Two-branch methods: each is a file with what its teacher and its student compute, and the losses between them."""
