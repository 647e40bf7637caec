# flowward on a CPU: the built-in model, tests, and serving rewards. From the repository:
#   docker build -f docker/cpu.Dockerfile -t flowward:cpu .
#   docker run --rm -v "$PWD/runs:/home/user/runs" flowward:cpu demo
FROM python:3.11-slim

RUN useradd --create-home user
COPY . /source
# uv takes the CPU build of torch (200 MB instead of 5.9 GB)
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend=cpu -c /source/constraints.txt "/source[data,rewards,server]" \
    && rm -rf /source
USER user
WORKDIR /home/user
ENTRYPOINT ["flowward"]
CMD ["--help"]
