# What R itself says of small experiments, step by step, for the tests to compare with.
#   Rscript reference.R group control folder formula [folder formula ...]
# reads counts.csv (genes x samples) and obs.csv of each folder, writes one CSV a result there; numbers carry 17 digits.
# All in one process: starting R with limma and edgeR takes longer than most of the experiments.
suppressMessages({ library(limma); library(edgeR) })

describe <- function(folder, formula_text, group_name, control) {
  read <- function(name) read.csv(file.path(folder, name), row.names = 1, check.names = FALSE)
  save <- function(x, name) write.table(format(as.matrix(x), digits = 17), file.path(folder, name), sep = ",", quote = FALSE)

  counts <- as.matrix(read("counts.csv"))
  obs <- read("obs.csv")
  numeric <- vapply(obs, is.numeric, TRUE)
  obs[!numeric] <- lapply(obs[!numeric], factor)
  one_level <- names(obs)[vapply(obs, function(x) is.factor(x) && nlevels(x) < 2, TRUE)]
  formula <- as.formula(formula_text)
  for (name in one_level) formula <- update(formula, paste("~ . -", name))
  design <- model.matrix(formula, obs)
  # update() drops "0 +": put the group's indicators back where the formula has no intercept
  if (grepl("^~ *0", formula_text) && length(one_level)) design <- model.matrix(update(formula, ~ . + 0), obs)
  save(design, "design.csv")

  factors <- calcNormFactors(DGEList(counts))
  save(factors$samples$norm.factors, "tmm.csv")
  for (method in c("TMMwsp", "RLE", "upperquartile")) {
    found <- tryCatch(calcNormFactors(DGEList(counts), method = method)$samples$norm.factors, error = function(e) NA)
    save(found, paste0(tolower(method), ".csv"))
  }
  own <- seq(1e4, 3e4, length.out = ncol(counts))
  for (method in c("TMM", "TMMwsp")) save(calcNormFactors(counts, lib.size = own, method = method), paste0(tolower(method), "_own.csv"))
  save(filterByExpr(DGEList(counts), design), "filter.csv")
  save(filterByExpr(DGEList(counts), group = obs[[group_name]], min.count = 3, min.total.count = 40, large.n = 3, min.prop = 0.5), "filter_group.csv")
  save(filterByExpr(counts, group = obs[[group_name]], lib.size = own), "filter_own.csv")
  v <- suppressWarnings(voom(factors, design))
  save(v$E, "e.csv")
  save(v$weights, "weights.csv")
  # limma 3.66's chooseLowessSpan (small.n = 50, min.span = 0.3, power = 1/3), of all rows that voom is given
  span <- min(0.3 + 0.7 * (50 / nrow(counts))^(1 / 3), 1)
  adaptive <- list(factors, design, span = span)
  if ("adaptive.span" %in% names(formals(voom))) adaptive <- list(factors, design, adaptive.span = TRUE)
  save(suppressWarnings(do.call(voom, adaptive))$weights, "weights_adaptive.csv")
  fit <- suppressWarnings(lmFit(v, design))
  save(colnames(design)[is.na(fit$coefficients[1, ])], "aliased.csv")
  save(fit$sigma, "sigma.csv")
  save(fit$Amean, "amean.csv")

  group <- obs[[group_name]]
  columns <- paste0(group_name, levels(group))
  others <- setdiff(columns, paste0(group_name, control))
  contrasts <- matrix(0, ncol(design), length(others), dimnames = list(colnames(design), others))
  for (name in others) contrasts[name, name] <- 1
  contrasts[paste0(group_name, control), ] <- -1
  compared <- contrasts.fit(fit, contrasts)
  save(compared$coefficients, "logfc.csv")

  tail <- function(f) (log(2) + pt(-abs(f$t), f$df.total, log.p = TRUE)) / log(10)
  for (kind in c("plain", "robust", "trend", "both")) {
    moderated <- suppressWarnings(
      eBayes(compared, robust = kind %in% c("robust", "both"), trend = kind %in% c("trend", "both"))
    )
    save(moderated$t, paste0("t_", kind, ".csv"))
    save(tail(moderated), paste0("log10p_", kind, ".csv"))
    save(rep_len(moderated$df.total, nrow(counts)), paste0("df_", kind, ".csv"))
  }

  # the exact contrasts: the control is the reference level and each coefficient is tested as it is, no contrasts.fit
  obs[[group_name]] <- relevel(group, control)
  design <- model.matrix(update(formula, ~ . + 1), obs)
  fit <- suppressWarnings(lmFit(voom(factors, design), design))
  moderated <- suppressWarnings(eBayes(fit))
  save(moderated$t[, others, drop = FALSE], "t_exact.csv")
  save(tail(moderated)[, others, drop = FALSE], "log10p_exact.csv")
}

arguments <- commandArgs(trailingOnly = TRUE)
for (i in seq(3, length(arguments), 2)) describe(arguments[i], arguments[i + 1], arguments[1], arguments[2])
