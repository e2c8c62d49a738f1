"""The reward server: models behind the protocols of trainers and rerankers, with batches across requests.

Needs the extra `hafrm[serve]`; without it, only `config` and `run` can be imported.
"""
