"""One module a promise; `hutch.testing.StorageSuite` is all of them."""
