"""stub: names come with the rooms."""

if __name__ != "keras_resnet.training":
    raise ImportError("import keras_resnet.training: this folder is part of that package and no package by itself")
