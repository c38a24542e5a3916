"""Who is most like an embedding: in a small collection by comparing all faces, in a large one by its HNSW index.

Either is first asked for somewhat more faces than subjects are wanted, nearest first. Where those belong to too few subjects,
because some have many faces alike, all faces are compared and the best of each subject taken.
"""

import json
from collections.abc import Sequence

import numpy as np

from service.gallery.gallery import Embeddings, Match, Search
from service.gallery.postgres_collection import CollectionRow, to_text
from service.gallery.postgres_index import EF_SEARCH
from service.gallery.postgres_pool import Rows, Session

_ASKED = """
WITH asked AS MATERIALIZED (
    SELECT number, CAST(text AS vector({d})) AS embedding
    FROM json_array_elements_text(CAST(:asked AS json)) WITH ORDINALITY AS a(text, number)
)
SELECT q.number, s.name, encode(f.face_id, 'hex'), -f.distance
FROM asked q CROSS JOIN LATERAL ({faces}) f JOIN subject s ON s.id = f.subject
"""
_NEAREST = """
SELECT subject, face_id, {embedding} <#> q.embedding AS distance FROM face WHERE collection = {collection}
ORDER BY {embedding} <#> q.embedding LIMIT {limit}
"""
_BEST_OF_EACH = """
SELECT * FROM (
    SELECT DISTINCT ON (subject) subject, face_id, embedding <#> q.embedding AS distance
    FROM face WHERE collection = {collection} ORDER BY subject, distance
) best ORDER BY distance LIMIT {limit}
"""
_USE_INDEX = f"""
SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off;
SET LOCAL hnsw.ef_search = {EF_SEARCH}; SET LOCAL hnsw.iterative_scan = strict_order
"""
_DO_NOT = "SET LOCAL enable_sort = on; SET LOCAL enable_seqscan = on"


def search(session: Session, row: CollectionRow, embeddings: Embeddings, top_k: int, threshold: float, indexed: bool) -> Search:
    """Within one snapshot. `indexed`: by the index of the collection, which must be there."""
    wanted = min(top_k, row.subjects)
    limit = 4 * wanted + 8
    expected = min(limit, row.faces)
    found = list[list[Match]]()
    if len(embeddings) and wanted > 0:
        if indexed:
            session.simple(_USE_INDEX)
        nearest = _ask(session, _nearest(row, limit, indexed), row, embeddings)
        if indexed:
            session.simple(_DO_NOT)
        found = [_best(matches) for matches in nearest]
        short = [
            number
            for number, matches in enumerate(nearest)
            if len(found[number]) < wanted
            and (len(matches) < expected or expected < row.faces)
            and not (matches and matches[-1].similarity < threshold)
        ]
        if short:
            every = _BEST_OF_EACH.format(collection=row.id, limit=wanted)
            for number, matches in zip(short, _ask(session, every, row, embeddings[short]), strict=True):
                found[number] = _best(matches)
    kept = [[match for match in matches[:top_k] if match.similarity >= threshold] for matches in found]
    return Search(kept or [[] for _ in embeddings], row.faces, row.subjects)


def _nearest(row: CollectionRow, limit: int, indexed: bool) -> str:
    # The index is over the cast, so without the cast it cannot be used.
    embedding = f"(embedding::vector({row.model.dimension}))" if indexed else "embedding"
    return _NEAREST.format(embedding=embedding, collection=row.id, limit=limit)


def _ask(session: Session, faces: str, row: CollectionRow, embeddings: Embeddings) -> list[list[Match]]:
    sql = _ASKED.format(d=row.model.dimension, faces=faces)
    rows: Rows = session.rows(sql, asked=json.dumps([to_text(one) for one in embeddings]))
    answers: list[list[Match]] = [[] for _ in embeddings]
    for number, subject, face_id, similarity in rows:
        answers[number - 1].append(Match(subject, face_id, float(np.clip(similarity, -1.0, 1.0))))
    for answer in answers:
        answer.sort(key=lambda match: (-match.similarity, match.subject, match.face_id))
    return answers


def _best(matches: Sequence[Match]) -> list[Match]:
    """The first of each subject."""
    best = dict[str, Match]()
    for match in matches:
        best.setdefault(match.subject, match)
    return list(best.values())
