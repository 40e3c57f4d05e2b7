# limma-voom for perturbgen: the only R that the package runs.
#
# limma_fit() makes the fit, limma_test() the statistics of all contrasts of it. Both take and return plain matrices, so
# they can be called from Python (perturbgen.de.r) or from R alone (r/limma_fit.R).

# A function's value together with the warnings, messages and output that came with it, none of which reach the console.
call_quietly <- function(wanted, ...) {
  warnings <- character()
  messages <- character()
  output <- utils::capture.output(
    value <- withCallingHandlers(
      wanted(...),
      warning = function(w) {
        warnings <<- c(warnings, conditionMessage(w))
        invokeRestart("muffleWarning")
      },
      message = function(m) {
        messages <<- c(messages, conditionMessage(m))
        invokeRestart("muffleMessage")
      }
    )
  )
  list(value = value, warnings = unique(warnings), messages = unique(c(messages, output)))
}

# counts: genes x samples; design: samples x columns, of full rank; normalise: a method of calcNormFactors; offset: of
# each sample's log2 library size.
limma_fit <- function(counts, design, normalise = "TMM", span = 0.5, offset = numeric()) {
  genes <- edgeR::calcNormFactors(edgeR::DGEList(counts), method = normalise)
  sizes <- genes$samples$lib.size * genes$samples$norm.factors
  if (length(offset)) sizes <- (sizes + 1) * 2^as.vector(offset) - 1
  options <- list(genes, design, lib.size = sizes, span = span, save.plot = TRUE)
  # from 3.66 on voom chooses its own span unless it is told not to
  if ("adaptive.span" %in% names(formals(limma::voom))) options$adaptive.span <- FALSE
  transformed <- do.call(limma::voom, options)
  fit <- limma::lmFit(transformed, design)
  fit$voom.points <- transformed$voom.xy[c("x", "y")]
  fit$voom.line <- transformed$voom.line[c("x", "y")]
  fit
}

# contrasts: columns x contrasts, or NULL where the first `tested` columns of the design are themselves what is tested.
limma_test <- function(fit, contrasts = NULL, tested = NULL, robust = FALSE, trend = FALSE) {
  points <- fit$voom.points
  line <- fit$voom.line
  if (!is.null(contrasts)) fit <- limma::contrasts.fit(fit, contrasts)
  fit <- limma::eBayes(fit, robust = robust, trend = trend)
  keep <- if (is.null(tested)) seq_len(ncol(fit$coefficients)) else seq_len(tested)
  t <- fit$t[, keep, drop = FALSE]
  list(
    effects = unname(fit$coefficients[, keep, drop = FALSE]),
    se = unname(fit$stdev.unscaled[, keep, drop = FALSE] * sqrt(fit$s2.post)),
    t = unname(t),
    log_p = unname(log(2) + pt(-abs(t), df = fit$df.total, log.p = TRUE)),
    df_total = as.numeric(rep_len(fit$df.total, nrow(t))),
    ave_expr = as.numeric(fit$Amean),
    sigma = as.numeric(fit$sigma),
    mean = as.numeric(points$x), root_sd = as.numeric(points$y),
    trend_x = as.numeric(line$x), trend_y = as.numeric(line$y)
  )
}
