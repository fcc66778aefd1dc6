"""The encoder and masked pretraining: packed patches, sparse encoders, the light decoder, SparK and its loss."""
