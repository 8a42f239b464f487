"""The Hugging Face hub: caches and controllers fetched by repository id (`fetch.py`) and published (`upload.py`).

Access tokens are huggingface_hub's own: `HF_TOKEN`, or the login stored by `hf auth login`.
"""
