#!/usr/bin/env Rscript
# The R backend without Python: limma-voom of every level of a factor against a control, with contrasts.fit.
#
#   Rscript r/limma_fit.R counts.csv obs.csv "~0 + compound + donor" compound DMSO de.csv [robust] [trend]
#
# counts.csv: genes in rows, samples in columns, names in the first column and row. obs.csv: samples in rows, in the
# same order. The factor must come first in the formula. Writes one row for each contrast and gene.
# Rscript writes a space in its own path as ~+~.
file <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
here <- dirname(gsub("~+~", " ", file, fixed = TRUE))
source(file.path(here, "..", "perturbgen", "de", "limma_fit.R"))

arguments <- commandArgs(trailingOnly = TRUE)
if (length(arguments) < 6) {
  stop("usage: limma_fit.R counts.csv obs.csv formula factor control out.csv [robust] [trend]", call. = FALSE)
}
counts <- as.matrix(read.csv(arguments[1], row.names = 1, check.names = FALSE))
obs <- read.csv(arguments[2], row.names = 1, check.names = FALSE, stringsAsFactors = TRUE)
if (!identical(colnames(counts), rownames(obs))) stop("counts and obs name different samples", call. = FALSE)
group <- factor(obs[[arguments[4]]])
control <- match(arguments[5], levels(group))
if (is.na(control)) stop("no sample of the control ", arguments[5], call. = FALSE)

design <- model.matrix(as.formula(arguments[3]), obs)
decomposed <- qr(design)
design <- design[, sort(decomposed$pivot[seq_len(decomposed$rank)]), drop = FALSE]
others <- setdiff(seq_len(nlevels(group)), control)
contrasts <- matrix(0, ncol(design), length(others))
contrasts[cbind(others, seq_along(others))] <- 1
contrasts[control, ] <- -1

found <- limma_test(limma_fit(counts, design), contrasts,
  robust = "robust" %in% arguments, trend = "trend" %in% arguments
)
table <- data.frame(
  condition = rep(levels(group)[others], each = nrow(counts)), gene = rownames(counts),
  logfc = c(found$effects), ave_expr = found$ave_expr, t = c(found$t), se = c(found$se), df = found$df_total,
  log10_p = c(found$log_p) / log(10)
)
write.csv(table, arguments[6], row.names = FALSE)
