# The book and the package from the same pins as everywhere else.
#
#     docker build -t lrc .
#     docker run --rm -p 8000:8000 lrc                         # the book, on port 8000
#     docker run --rm -it -v "$PWD/runs:/lrc/runs" lrc bash    # the notebooks, with papermill
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /lrc
COPY . .
RUN make book
ENV PATH=/lrc/.venv/bin:$PATH
EXPOSE 8000
CMD ["python", "-m", "http.server", "8000", "--directory", "_build/html"]
