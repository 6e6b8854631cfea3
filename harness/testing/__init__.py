"""What tests of methods share: contracts, toys, a pytest plug-in."""
