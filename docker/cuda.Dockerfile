# flowward on NVIDIA GPUs. From the repository:
#   docker build -f docker/cuda.Dockerfile -t flowward:cuda .
#   docker run --rm --gpus all --ipc=host -v "$PWD/runs:/home/user/runs" -v ~/.cache/huggingface:/home/user/.cache/huggingface \
#       flowward:cuda train --config sd3.5-medium/advantageflow-ocr
# torch brings its own CUDA libraries; the machine needs only the NVIDIA driver and its container toolkit. g++ is for
# --compile-blocks.
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user
COPY . /source
RUN pip install --no-cache-dir -c /source/constraints.txt "/source[data,quantise,rewards,server]" && rm -rf /source
USER user
WORKDIR /home/user
ENTRYPOINT ["flowward"]
CMD ["--help"]
