"""A libcuda.so.1 of our own, which has no device, and the places where NVIDIA's container toolkit puts the real one."""

import pathlib
import subprocess

# It says that it was loaded, and that there is nothing to compute on: CUDA_ERROR_NO_DEVICE.
SOURCE = """
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) { if (write(2, "the driver is loaded\\n", 21) != 21) _exit(9); }
int cuInit(unsigned flags) { (void)flags; return 100; }
"""
LOADED = "the driver is loaded\n"
NAME = "libcuda.so.1"


def built(folder):
    """The library, in a folder."""
    source, library = pathlib.Path(folder, "driver.c"), pathlib.Path(folder, NAME)
    source.write_text(SOURCE)
    words = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{NAME}", "-o", library, source]
    subprocess.run(words, check=True, timeout=60)
    library.chmod(0o755)
    return library


def installed(library, root, folder):
    """The same in a folder of a root, as what is brought from the host."""
    there = pathlib.Path(root, folder.lstrip("/"))
    there.mkdir(parents=True, exist_ok=True)
    (there / NAME).write_bytes(library.read_bytes())
    (there / NAME).chmod(0o755)
