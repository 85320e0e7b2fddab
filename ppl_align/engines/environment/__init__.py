"""Programs in which a world answers: deciding by planning, and what it means to condition the world as well."""
