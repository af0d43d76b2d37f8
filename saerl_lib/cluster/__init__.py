"""Many processes or machines: sharded encoding of a data file and the study's grid, on this machine's cores or on Ray (ours).

The modules follow the path of a row: stage (files -> judged rows in Parquet), shard (rows -> pooled latents in Parquet), encode
(all shards, then the manifest) with local or ray_encode as the hands, store (reading). ray_grid runs training jobs, ray_link
finds the cluster.
"""

from saerl_lib.cluster.encode import Encoded, encode_files
from saerl_lib.cluster.store import open_encoded

__all__ = ["Encoded", "encode_files", "open_encoded"]
