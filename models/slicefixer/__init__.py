"""SliceFixer: repairs slices of a volume reconstructed from few X-ray views in one diffusion step (DiffNR, arXiv 2604.21518).

Two models behind one interface (`model.SliceFixer`): `compact`, trained from scratch, and `sd_turbo`, the paper's, whose weights the user has.
Pairs to learn from are made by `diffnr curate` (docs/curation.md); `python -m slicefixer train | validate | export`.
"""
