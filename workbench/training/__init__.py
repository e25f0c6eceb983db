"""Recipes, the trainer and runs: a recipe says what to train, a run is the folder that training leaves."""
