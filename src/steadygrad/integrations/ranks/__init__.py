"""Several processes train one model: they are told of each other's trouble and decide alike."""
