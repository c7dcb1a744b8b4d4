"""Work that waits its turn: admission, costs, the journal, requests, what a loss must bring back."""
