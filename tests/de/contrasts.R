# What limma says of contrasts, for test_linear_r.py to compare with.
#   Rscript contrasts.R folder formula [folder formula ...]
# reads counts.csv (genes x samples), obs.csv and contrasts.csv (coefficients x contrasts) of each folder.
suppressMessages({ library(limma); library(edgeR) })

describe <- function(folder, formula_text) {
  read <- function(name) read.csv(file.path(folder, name), row.names = 1, check.names = FALSE)
  save <- function(x, name) write.table(format(as.matrix(x), digits = 17), file.path(folder, name), sep = ",", quote = FALSE)

  counts <- as.matrix(read("counts.csv"))
  obs <- read("obs.csv")
  numeric <- vapply(obs, is.numeric, TRUE)
  obs[!numeric] <- lapply(obs[!numeric], factor)
  one_level <- names(obs)[vapply(obs, function(x) is.factor(x) && nlevels(x) < 2, TRUE)]
  for (name in one_level) formula_text <- gsub(paste0(" \\+ ", name), "", formula_text)
  design <- model.matrix(as.formula(formula_text), obs)
  wanted <- as.matrix(read("contrasts.csv"))
  v <- suppressWarnings(voom(calcNormFactors(DGEList(counts)), design))
  fit <- suppressWarnings(lmFit(v, design))
  compared <- suppressWarnings(contrasts.fit(fit, wanted))

  for (kind in c("plain", "robust", "trend", "both")) {
    robust <- kind %in% c("robust", "both")
    trend <- kind %in% c("trend", "both")
    tested <- suppressWarnings(eBayes(compared, robust = robust, trend = trend))
    if (is.null(tested$F)) {  # limma gives none for a design of which columns were dropped
      f <- classifyTestsF(tested, fstat.only = TRUE)
      tested$F <- as.vector(f)
      tested$F.p.value <- pf(tested$F, attr(f, "df1"), attr(f, "df2"), lower.tail = FALSE)
    }
    decided <- function(...) decideTests(...)@.Data
    keep <- function(x, name) save(x, paste0(name, "_", kind, ".csv"))
    keep(tested$t, "t")
    keep(tested$p.value, "p")
    keep(tested$lods, "b")
    keep(cbind(tested$F, tested$F.p.value), "f")
    keep(topTable(tested, coef = 1, number = Inf, sort.by = "none", confint = 0.9)[, c("CI.L", "CI.R")], "ci")
    for (method in c("separate", "global", "nestedF")) keep(decided(tested, method = method, p.value = 0.1), method)
    keep(decided(tested, method = "nestedF", adjust.method = "holm", p.value = 0.1), "holm")
    relevant <- suppressWarnings(treat(compared, lfc = 0.3, robust = robust, trend = trend))
    keep(relevant$t, "treat_t")
    keep(relevant$p.value, "treat_p")
    keep(decided(relevant, p.value = 0.1), "treat_separate")
  }

  # exact contrasts, gene by gene: no unweighted design in place of the gene's own
  X <- design[, !is.na(fit$coefficients[1, ])]
  C <- wanted[colnames(X), c(1, 2, 4), drop = FALSE]
  s2 <- suppressWarnings(eBayes(fit))$s2.post
  exact <- t(vapply(seq(nrow(counts), by = -1, length.out = min(nrow(counts), 1000)), function(g) {
    V <- solve(crossprod(X, X * v$weights[g, ]))
    b <- crossprod(C, V %*% crossprod(X, v$weights[g, ] * v$E[g, ]))
    S <- crossprod(C, V %*% C)
    c(b / sqrt(diag(S) * s2[g]), crossprod(b, solve(S, b)) / 3 / s2[g])
  }, numeric(4)))
  save(exact, "exact.csv")
}

arguments <- commandArgs(trailingOnly = TRUE)
for (i in seq(1, length(arguments), 2)) describe(arguments[i], arguments[i + 1])
