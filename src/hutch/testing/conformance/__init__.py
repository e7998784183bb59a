"""One module per promise; `hutch.testing.StorageSuite` is all of them."""
