"""Problems as rows: read, judged, split, published sets, and their answers checked."""
