"""Callbacks for the training loops of others. Each module needs the package that it is named after."""
