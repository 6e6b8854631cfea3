"""For tests of methods: the contract, toy models and data, a pytest plug-in."""
