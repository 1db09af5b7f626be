"""Operations that need less memory or time than torch's, with the same results up to rounding and dropout masks."""
