"""Enroll until killed: `python kill_enrolling.py URL`, for a gallery of 16 numbers an embedding.

64 threads work off 1,000 enrolments; subject n ("subject n") gets 1 + n % 5 faces in one call. When an enrolment has returned, a
line with n is written at once. Embedding k of subject n is what numpy's generator seeded with [n, k] gives, brought to length 1.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import SecretStr

from service.gallery import open_gallery
from service.gallery.gallery import EmbeddingModel, NewFace
from service.settings import Settings

THREADS, ENROLMENTS, DIMENSION = 64, 1000, 16
MODEL = EmbeddingModel("sface", "1", "ab" * 32, "plain", DIMENSION)


def main(url: str) -> None:
    gallery = open_gallery(Settings(gallery_url=SecretStr(url)), MODEL)
    writing = threading.Lock()

    def enroll(number: int) -> None:
        faces = []
        for face in range(1 + number % 5):
            vector = np.random.default_rng([number, face]).standard_normal(DIMENSION)
            faces.append(NewFace((vector / np.linalg.norm(vector)).astype(np.float32), (0.0, 0.0, 1.0, 1.0), {}))
        gallery.enroll("default", f"subject {number}", faces)
        with writing:
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(enroll, range(ENROLMENTS)))
    gallery.close()


if __name__ == "__main__":
    main(sys.argv[1])
