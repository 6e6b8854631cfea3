"""The benchmark and evaluation engine. It contains no name of a method or a task; plug-ins bring them."""
