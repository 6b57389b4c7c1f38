"""Integer networks: quantisation from calibration data, and the exact integer arithmetic of every operator."""
