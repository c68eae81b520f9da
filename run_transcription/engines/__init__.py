"""The engines that decode a batch of chunks: one module each, all with the protocol `records.Engine`."""
