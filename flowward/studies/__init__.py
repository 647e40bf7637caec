"""Studies: the same training by several algorithms, at equal budgets, over several seeds, with what can be concluded.

The way of a study: `plan` reads its file, `costs` measures what an image costs each algorithm, `schedule` lists the
runs of the search and of the comparison, `pool` carries them out, `curves` reads them back, `findings` compares them.

The way of advice: `shipped` has results, `ranking` reads them, `subjects`, `cards` and `sizes` say what is known of
models, GPUs and memory, `starts` and `fits` find settings and batches, `advice` puts it into sentences.
"""
