"""Operations that look at a store, or clean it up: verify, repair, purge, gc."""
