"""The reward server: one model behind the protocols that trainers and rerankers speak, with batches across requests.

Needs the extra `hafrm[serve]`; only `config` and `run` import without it.
"""
