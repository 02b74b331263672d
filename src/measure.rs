//! PSNR, SSIM, RMSE, Dice, ASD, latency histograms.
