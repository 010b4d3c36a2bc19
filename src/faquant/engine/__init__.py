"""Generation: the engine, its scheduler and page pool, speculative decoding, and the classes LLM and AsyncEngine."""
