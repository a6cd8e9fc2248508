"""The servers that people use today, each behind the same small interface."""

from compare.peers.litserve import LITSERVE
from compare.peers.mlserver import MLSERVER
from compare.peers.peer import Peer
from compare.peers.ray_serve import RAY_SERVE
from compare.peers.triton import TRITON

PEERS: tuple[Peer, ...] = (TRITON, MLSERVER, LITSERVE, RAY_SERVE)
