"""What all tests share."""

import torch

# Models here are tiny: threads would spend their time waiting for each other.
torch.set_num_threads(1)
