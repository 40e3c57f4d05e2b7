"""Networks on images: their fields, their feed, their training through the one loop, their evaluation."""
