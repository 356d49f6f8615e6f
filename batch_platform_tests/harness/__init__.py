"""What tests are made with: projects, pipelines, processes, servers and finished starting points.

It imports the package and libraries, and neither tests nor benchmarks. Begin with `small_pipeline`.
"""
