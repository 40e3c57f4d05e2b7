# What limma and edgeR say of weights, blocks and log values, for tests/de/test_weights_r.py.
#   Rscript weights.R folder [folder ...]
# Each folder holds counts.csv (genes x samples), design.csv (samples x columns) and block.csv; one CSV a result is
# written there, with 17 digits.
suppressMessages({ library(limma); library(edgeR) })

describe <- function(folder) {
  read <- function(name) as.matrix(read.csv(file.path(folder, name), row.names = 1, check.names = FALSE))
  save <- function(x, name) write.table(format(as.matrix(x), digits = 17), file.path(folder, paste0(name, ".csv")), sep = ",", quote = FALSE)
  quietly <- function(x) suppressMessages(suppressWarnings(x))
  counts <- read("counts.csv")
  design <- read("design.csv")
  block <- read("block.csv")[, 1]
  few <- seq_len(min(120, nrow(counts)))
  genes <- calcNormFactors(DGEList(counts))
  statistics <- function(fit, name, trend = FALSE) {
    fit <- quietly(eBayes(fit, trend = trend))
    save(fit$coefficients, paste0("coef_", name))
    save(fit$t, paste0("t_", name))
    save(fit$sigma, paste0("sigma_", name))
  }

  v <- quietly(voom(genes, design))
  save(quietly(duplicateCorrelation(v$E, design, block = block))$atanh.correlations, "rho_plain")
  first <- quietly(duplicateCorrelation(v, design, block = block))
  save(first$atanh.correlations, "rho_voom")
  save(first$consensus, "consensus")
  v2 <- quietly(voom(genes, design, block = block, correlation = first$consensus))
  save(v2$weights, "weights_blocked")
  second <- quietly(duplicateCorrelation(v2, design, block = block))
  save(second$consensus, "consensus2")
  statistics(quietly(lmFit(v2, design, block = block, correlation = second$consensus)), "blocked")

  save(quietly(arrayWeights(v, design)), "aw_voom")
  save(quietly(arrayWeights(v$E, design)), "aw_reml")
  # its REML with weights diverges on some small experiments, and stops with an error
  reml <- tryCatch(quietly(arrayWeights(v$E[few, ], design, weights = v$weights[few, ], method = "reml")), error = function(e) NA)
  save(reml, "aw_reml_voom")
  save(quietly(arrayWeights(v, design, var.group = block, prior.n = 3)), "aw_group")
  q <- quietly(voomWithQualityWeights(genes, design))
  save(q$weights, "weights_quality")
  save(q$targets$sample.weights, "aw_quality")
  statistics(quietly(lmFit(q, design)), "quality")

  own <- exp(outer(sin(seq_len(nrow(counts))), cos(seq_len(ncol(counts)))))
  o <- quietly(voom(genes, design, weights = own))
  save(o$weights, "weights_own")
  o$weights <- o$weights * own
  statistics(quietly(lmFit(o, design)), "own")

  y <- cpm(genes, log = TRUE, prior.count = 3)
  save(y, "logcpm")
  statistics(quietly(lmFit(y, design)), "trend", trend = TRUE)
  weights <- quietly(arrayWeights(y, design))
  statistics(quietly(lmFit(y, design, weights = weights)), "trend_quality", trend = TRUE)
  # of genes whose values the design explains (no counts, say), R finds a correlation in what rounding leaves of them
  varies <- colMeans(as.matrix(lm.fit(design, t(y))$residuals)^2) > 1e-20
  rho <- quietly(duplicateCorrelation(y[varies, ], design, block = block))$consensus
  statistics(quietly(lmFit(y, design, block = block, correlation = rho)), "trend_blocked", trend = TRUE)

  save(removeBatchEffect(y, batch = block), "nobatch")
  other <- rep(c("x", "y", "x"), length.out = ncol(y))
  save(quietly(removeBatchEffect(y, batch = block, batch2 = other, covariates = genes$samples$lib.size / 1e6, design = design[, 1:2])), "nobatch2")
  mds <- plotMDS(genes, plot = FALSE)
  save(cbind(mds$x, mds$y), "mds")
  save(mds$var.explained, "mds_share")
  common <- plotMDS(y, plot = FALSE, gene.selection = "common", top = 50)
  save(cbind(common$x, common$y), "mds_common")
}

for (folder in commandArgs(trailingOnly = TRUE)) describe(folder)
