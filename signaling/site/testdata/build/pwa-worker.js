// nothing is kept offline
