# JupyterLab on the notebooks, without a GPU:
#   docker build --tag faithful-sae .
#   docker run --rm --publish 8888:8888 faithful-sae
# Binder builds it too, and the devcontainer its first stage.
FROM python:3.11-slim AS tools
# versions of Debian's packages change with the image
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
# an index with PyTorch's builds for CPUs, if you have one at hand: the image is then smaller by gigabytes
ARG PIP_EXTRA_INDEX_URL=
# Binder calls its user as it likes
ARG NB_USER=reader
ARG NB_UID=1000
RUN useradd --create-home --uid "$NB_UID" "$NB_USER"
USER $NB_USER

FROM tools
ARG NB_USER=reader
ENV HOME=/home/$NB_USER
# by its user: Docker would make it root's
RUN mkdir "$HOME/faithful-sae"
WORKDIR $HOME/faithful-sae
COPY --chown=$NB_USER environment.yml Makefile ./
COPY --chown=$NB_USER lib lib
COPY --chown=$NB_USER workflow workflow
RUN PIP_NO_CACHE_DIR=1 make ready
COPY --chown=$NB_USER . .
ENV PATH=$HOME/faithful-sae/.venv/bin:$PATH \
    JUPYTER_CONFIG_PATH=$HOME/faithful-sae/workflow/jupyter
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--LabApp.default_url=/lab/tree/notebooks"]
