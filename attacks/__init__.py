"""Instance-level membership inference: was this record in the training set? One file per attack, all on numpy arrays.

    loss        LOSS: the target model's loss alone (Yeom et al., CSF'18)
    population  Attack P: its rank among the losses of records that nobody trained on (Ye et al., CCS'22)
    reference   Attack R: its rank among the losses of reference models on the same record (Ye et al., CCS'22)
    rmia        RMIA offline and online (Zarifzadeh et al., ICML'24)
    lira        LiRA offline, online and without shadow models (Carlini et al., S&P'22)
    base        BASE offline and online: Bayes-optimal, RMIA's order without a population (Lassila et al., NeurIPS'25)
    bavaria     BaVarIA offline and online: LiRA with a Bayesian's variance (Brännvall 2026)
    quantile    quantile regression on public features, without references (Bertran et al., NeurIPS'23)
    label_only  how many changed copies keep their label (Choquette-Choo et al., ICML'21)
    trajectory  the loss at checkpoints, where they are there (after Liu et al., CCS'22)
    ensemble    several attacks' ranks as one score
    membership  who trains on what, and every model as target with the others as references
    signals     loss <-> logit-scaled confidence, and the checks that all attacks share
    evaluation  AUC, TPR at low FPR, FPR at 100 % TPR, with their intervals
    clustered   the same intervals where records come again in several models; which records all models give away

Conventions, in every file:

- A score is float64 (N,), HIGHER for records that are more likely members. Scores of one call can be compared with each
  other; across attacks or calls only their order means something.
- Signals of the target are (N,), those of M reference models (M, N). With Q augmented queries a record, (Q, N) and
  (M, Q, N). float32 or float64; sums are taken in float64.
- "losses": cross entropy -log p_y >= 0. "scaled": LiRA's logit-scaled confidence log p_y - log(1 - p_y). From
  `utils.sample_signals`: losses are `cross_entropy`, scaled is MINUS `scaled_loss`.
- `membership`: bool (M, N), True where that model was trained on that record ("IN"; False: "OUT"). It is the reference
  models' and says nothing about the target.
- Nothing is drawn but in `membership.balanced` and the bootstrap of `evaluation`, both from a seed. Bad input raises
  `kit.errors.UserError`.
"""
