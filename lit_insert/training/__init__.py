"""What every LightningModule here shares."""
