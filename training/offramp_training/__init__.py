"""The offline job: backbone → features → heads → routers → evaluation → report → bundle."""
