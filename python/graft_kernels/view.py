"""A module seen with other parts: what a class's forward takes for `self`."""

import torch.nn as nn


class View:
    """Has the attributes that it is given; all others are the module's."""

    # transformers 5.23 asks the type of `self` whether this call is the one that checkpoints: it is not.
    forward = None

    def __init__(self, module: nn.Module, /, **attributes):
        self.__dict__.update(attributes, _module=module)

    def __getattr__(self, name):
        return getattr(self.__dict__["_module"], name)
