# What R itself says of a small experiment, step by step, for the tests to compare with.
#   Rscript reference.R folder formula group control
# reads counts.csv (genes x samples) and obs.csv, writes one CSV a result; numbers carry 17 digits.
suppressMessages({ library(limma); library(edgeR) })
arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[1]
read <- function(name) read.csv(file.path(folder, name), row.names = 1, check.names = FALSE)
save <- function(x, name) write.table(format(as.matrix(x), digits = 17), file.path(folder, name), sep = ",", quote = FALSE)

counts <- as.matrix(read("counts.csv"))
obs <- read("obs.csv")
numeric <- vapply(obs, is.numeric, TRUE)
obs[!numeric] <- lapply(obs[!numeric], factor)
one_level <- names(obs)[vapply(obs, function(x) is.factor(x) && nlevels(x) < 2, TRUE)]
formula <- as.formula(arguments[2])
for (name in one_level) formula <- update(formula, paste("~ . -", name))
design <- model.matrix(formula, obs)
# update() drops "0 +": put the group's indicators back where the formula has no intercept
if (grepl("^~ *0", arguments[2]) && length(one_level)) design <- model.matrix(update(formula, ~ . + 0), obs)
save(design, "design.csv")

factors <- calcNormFactors(DGEList(counts))
save(factors$samples$norm.factors, "tmm.csv")
save(filterByExpr(DGEList(counts), design), "filter.csv")
v <- suppressWarnings(voom(factors, design))
save(v$E, "e.csv")
save(v$weights, "weights.csv")
fit <- suppressWarnings(lmFit(v, design))
save(colnames(design)[is.na(fit$coefficients[1, ])], "aliased.csv")
save(fit$sigma, "sigma.csv")
save(fit$Amean, "amean.csv")

group <- obs[[arguments[3]]]
columns <- paste0(arguments[3], levels(group))
others <- setdiff(columns, paste0(arguments[3], arguments[4]))
contrasts <- matrix(0, ncol(design), length(others), dimnames = list(colnames(design), others))
for (name in others) contrasts[name, name] <- 1
contrasts[paste0(arguments[3], arguments[4]), ] <- -1
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
obs[[arguments[3]]] <- relevel(group, arguments[4])
design <- model.matrix(update(formula, ~ . + 1), obs)
fit <- suppressWarnings(lmFit(voom(factors, design), design))
moderated <- suppressWarnings(eBayes(fit))
save(moderated$t[, others, drop = FALSE], "t_exact.csv")
save(tail(moderated)[, others, drop = FALSE], "log10p_exact.csv")
