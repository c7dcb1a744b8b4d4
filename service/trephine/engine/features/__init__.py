"""Looking at features: indexes over a corpus, decoders, rankings, contrasts. Of neurons and loaded sets."""
