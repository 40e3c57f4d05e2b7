# What limma says of gene sets, for tests/de/test_sets_r.py.
#   Rscript sets.R folder [folder ...]
# Each folder holds counts.csv (genes x samples), design.csv (samples x columns), block.csv, contrast.csv and sets.gmt.
suppressMessages({ library(limma); library(edgeR) })

describe <- function(folder) {
  read <- function(name) as.matrix(read.csv(file.path(folder, name), row.names = 1, check.names = FALSE))
  save <- function(x, name) write.csv(x, file.path(folder, paste0(name, ".csv")))
  counts <- read("counts.csv")
  design <- read("design.csv")
  contrast <- read("contrast.csv")[, 1]
  block <- read("block.csv")[, 1]
  lines <- strsplit(readLines(file.path(folder, "sets.gmt")), "\t")
  sets <- setNames(lapply(lines, function(x) x[-(1:2)]), vapply(lines, `[`, "", 1))
  index <- ids2indices(sets, rownames(counts))
  v <- suppressWarnings(voom(calcNormFactors(DGEList(counts)), design))
  save(camera(v, index, design, contrast), "camera")
  save(camera(v, index, design, contrast, inter.gene.cor = NA), "camera_estimated")
  save(camera(v, index, design, contrast, inter.gene.cor = NA, allow.neg.cor = TRUE, trend.var = TRUE), "camera_negative")
  save(camera(v, index, design, contrast, use.ranks = TRUE), "camera_ranks")
  save(camera(v, index, design, contrast, use.ranks = TRUE, inter.gene.cor = NA), "camera_ranks_estimated")
  save(camera(v$E, index, design, contrast, inter.gene.cor = NA), "camera_log")
  save(fry(v, index, design, contrast), "fry")
  save(fry(v, index, design, contrast, sort = "mixed", standardize = "residual.sd"), "fry_residual")
  save(fry(v, index, design, contrast, standardize = "p2", sort = "none"), "fry_p2")
  save(fry(v, index, design, contrast, robust = TRUE), "fry_robust")
  save(fry(v, index, design, contrast, block = block, correlation = 0.2), "fry_blocked")
  set.seed(1)
  for (kind in c("mean", "floormean", "mean50", "msq"))
    save(mroast(v, index, design, contrast, set.statistic = kind, nrot = 4999, sort = "none"), paste0("roast_", kind))
}

for (folder in commandArgs(trailingOnly = TRUE)) describe(folder)
